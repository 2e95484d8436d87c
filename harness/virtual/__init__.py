"""A rack in a box: boards that are not hardware, and say so wherever their numbers appear.

Input: a spec (spec.demo_rack). Output: an inventory of boards reached over real SSH (rack.up).
Real: SSH, SFTP, processes, exit codes, the runtimes and their arithmetic. Simulated: sysfs, heat,
battery, and the clock, which clockshim.c slows for all that looks at it through libc.
"""
