"""One form into another, and back: raw folders, arrays, parts, stores."""
