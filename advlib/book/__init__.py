"""What only the book needs: its recipes, trained networks, figures, notebook lab and commands."""
