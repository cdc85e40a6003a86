"""What makes the documentation: its site, its pictures, its screenshots."""
