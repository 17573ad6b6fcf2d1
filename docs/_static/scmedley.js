// What is wider than the page is scrolled: by the keyboard too. Buttons that open a branch of the contents have a name.
document.addEventListener("DOMContentLoaded", () => {
  for (const node of document.querySelectorAll(".bd-article table")) {
    if (node.scrollWidth > node.clientWidth) node.tabIndex = 0;
  }
  for (const node of document.querySelectorAll(".bd-sidebar-primary summary")) {
    node.setAttribute("aria-label", "Pages below this one");
  }
});
