"""What this machine is and has: its cores, disks, memory, GPUs and name."""
