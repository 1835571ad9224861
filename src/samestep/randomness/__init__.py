"""All that is drawn, as a pure function of where in the run it is: the order of rows, and every generator's seed."""
