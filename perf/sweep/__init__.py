"""Products with the Hessian of every kind of layer, loss and model, against differences."""
