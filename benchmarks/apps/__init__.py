"""Ray Serve applications that are measured, and the script that starts them."""
