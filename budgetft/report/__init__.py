"""A plan and a run as one page that explains them."""
