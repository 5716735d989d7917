"""The generated world `bazaar`: `words` (its vocabulary), `pictures` (its photographs), `world` (products, shoppers, clicks)."""
