"""The game averaged at frozen parameters, and the flow dx/dt = F(x) of that average."""
