"""What any part of the project may use: files, bytes and processes. Imports no other room."""
