"""From a trained adapter to a score: generate captions and answers, reduce them, score them, write a submission."""
