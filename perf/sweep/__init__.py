"""Products with the Hessian of every kind of layer, loss, function and model, against differences."""
