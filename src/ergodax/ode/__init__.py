"""Solving dx/dt = F(x) and differentiating the solution along its path; knows no game."""
