"""Numbers of published studies, found anew."""
