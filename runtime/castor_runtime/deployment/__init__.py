"""Starting the one line of `castor run` on many hosts, by what is there: ssh, Slurm, Kubernetes."""
