// The destination of a tunnel. Knows no protocol.

/** Host and port of a destination. */
export interface Authority {
  /** A name or an address; IPv6 without brackets. */
  readonly host: string;
  /** 1 to 65535. */
  readonly port: number;
}

/** Formats `host:port`, with IPv6 in brackets. Escapes a zone that begins with 25, which would be read as an escape. */
export function formatAuthority({ host, port }: Authority): string {
  return host.includes(":") ? `[${host.replace("%25", "%2525")}]:${port}` : `${host}:${port}`;
}
