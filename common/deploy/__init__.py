"""Using a trained model: predictions, attention maps, exports and the engines that run them."""
