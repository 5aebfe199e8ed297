"""Side-by-side measurements. A package, for others (Opacus) install one of the same name, which would otherwise hide this one."""
