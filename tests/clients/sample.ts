// What an app may write, and with @ts-expect-error what it may not.

import * as client from "../../client/client.js";
import { GatewayError, gateway, login, type Code, type DataHub, type Gateway, type Session } from "../../client/client.js";

interface Project {
  id: number;
}

export async function app(file: File, signal: AbortSignal): Promise<number[]> {
  const elsewhere: Gateway = gateway("/arcmanager/api/v1");
  const datahubs: DataHub[] = await elsewhere.datahubs();
  const sessions: Session[] = await client.sessions();
  if (!sessions.length) login(datahubs[0]!.id, { returnTo: "/app/?x=1", prompt: "login" });
  // @ts-expect-error: GitLab is never asked to log in without a page.
  login("tuebingen", { prompt: "none" });

  const ids: number[] = [];
  for await (const projects of client.pages<Project>("tuebingen", "/api/v4/projects", { signal })) {
    ids.push(...projects.map(({ id }) => id));
  }
  // @ts-expect-error: an upload has a body.
  await client.upload("tuebingen", "/api/v4/x", {});
  const { expires_at }: Session = await client.ensureFresh("tuebingen", 60);
  const response: Response = await client.upload("tuebingen", "/api/v4/x", {
    method: "PUT", body: file, signal, headers: { Accept: expires_at }, onprogress: ({ loaded, total }) => console.log(loaded / total),
  });
  const link = document.createElement("a");
  link.href = client.downloadUrl("tuebingen", "/api/v4/x");
  const end: () => void = client.onsignout((datahub: string | undefined) => console.log(datahub));
  try {
    await client.fetch("tuebingen", "/api/v4/user", { method: "POST", body: JSON.stringify({}), signal });
  } catch (error) {
    if (!(error instanceof GatewayError)) throw error;
    const code: Code | undefined = error.code;
    // @ts-expect-error: no code of the gateway's.
    if (code === "logged_out") return [];
    if (error.code === "not_logged_in" || error.status === 0) console.log(error.message, error.body?.message, error.requestId);
  }
  await client.logout();
  await client.logout("tuebingen");
  end();
  return [...ids, response.status];
}
