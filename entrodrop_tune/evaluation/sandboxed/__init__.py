"""What runs inside the sandbox. These files import only the standard library and each other (by bare name)."""
