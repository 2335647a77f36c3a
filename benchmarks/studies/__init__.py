"""Long studies: training runs and simulations."""
