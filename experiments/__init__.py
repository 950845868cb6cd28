"""Programs that train models federatedly and write down what they did. Not installed."""
