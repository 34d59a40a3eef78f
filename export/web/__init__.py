"""A live page: the student and its heads in a browser, as a folder for any static server."""
