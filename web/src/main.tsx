import { createRoot } from "react-dom/client";
import { App } from "./app";
import { showTheme } from "./theme";
import "./styles.css";

showTheme();
createRoot(document.getElementById("root")!).render(<App />);
