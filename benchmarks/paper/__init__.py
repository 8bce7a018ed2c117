"""The paper's tables and figures: which cells they have, what runs a cell, measured beside printed."""
