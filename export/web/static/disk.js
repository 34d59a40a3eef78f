// Browsers load no module from disk, so that app.js cannot say this.
if (location.protocol === "file:")
  document.getElementById("message").textContent =
    "Browsers do not load this page from disk. In this folder run: python3 serve.py";
