"""The generated world `bazaar`, in reading order: `words` (its vocabulary), `pictures` (how goods look), `goods` (what is sold, titled and
photographed how), `shoppers` (who asks for and clicks what), `world` (the three tables)."""
