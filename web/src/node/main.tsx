import { createRoot } from "react-dom/client";
import { showTheme } from "../theme";
import "../styles.css";
import "./node.css";
import { Page } from "./page";

showTheme();
// Plain http addresses are no secure origin, and have no service workers: the page works there all the same.
if ("serviceWorker" in navigator) void navigator.serviceWorker.register("/node-worker.js").catch((error: unknown) => console.warn("no service worker:", error));
createRoot(document.getElementById("root")!).render(<Page />);
