"""Micro-controllers and everything else with a C compiler: C source from one small kernel library."""
