// Before anything is drawn: the theme that was chosen on this device, so that the page does not flash in the other one.
try {
  const theme = localStorage.getItem("reportsvc.theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // Storage may be forbidden; then the system's theme holds.
}
