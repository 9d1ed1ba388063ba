// A wide formula scrolls in its own box, which the keyboard must be able to reach.
addEventListener("load", () => {
  window.MathJax?.startup.promise.then(() => {
    for (const formula of document.querySelectorAll("mjx-container[display]")) formula.tabIndex = 0;
  });
});
