"""Programs that the doctor runs in child processes. They import nothing of budgetft and print one JSON object a line."""
