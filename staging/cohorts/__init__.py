"""The challenges' layouts, tables and submissions."""
