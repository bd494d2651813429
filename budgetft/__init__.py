"""budgetft: a memory-budget planner and auto-tuner for LoRA fine-tuning of vision-language models on one small GPU."""

__version__ = "0.2.0"
