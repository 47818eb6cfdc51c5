"""The site's own machine: the only room that sees text.  Never imports the server."""
