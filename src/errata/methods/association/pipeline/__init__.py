"""Two memories behind one router: the second answers what the first has nothing for."""
