"""An arm64 Debian board in QEMU, whose kernel, heat and clock the agent cannot tell from real ones.

Input: Debian's packages (image.build_image) and a VmSpec. Output: a Vm, reached over SSH.
Real: the kernel and its cpufreq and thermal governors, sshd, the userland, aarch64 wheels.
Simulated: the CPU (emulated), and the physics in guest/boardsim.c.
"""
