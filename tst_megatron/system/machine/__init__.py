"""Ask this machine for its cores, disks, memory, GPUs and name."""
