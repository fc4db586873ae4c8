"""`castor train`: starts, supervises, shows and sums up a run on one machine."""
