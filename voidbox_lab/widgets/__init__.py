"""How runs are shown: live in a notebook, frozen when they end, as plain lines elsewhere."""
