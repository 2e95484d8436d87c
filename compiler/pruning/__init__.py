"""From coupled channels to a smaller network: groups, widths, surgery, search."""
