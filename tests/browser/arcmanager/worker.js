onmessage = () => postMessage("here");
