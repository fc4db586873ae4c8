"""`castor train`: starts, supervises, injures, shows and sums up a run on one machine."""
