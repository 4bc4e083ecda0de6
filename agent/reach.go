package agent

import "net/url"

// ProxyFor returns the proxy through which the agent reaches server, a URL as in
// Config.Servers; nil when it needs none. Its password, if it has one, is in it.
func (a *Agent) ProxyFor(server string) (*url.URL, error) {
	u, err := parseServer(server, true) // New has found it right
	if err != nil {
		return nil, err
	}
	u.Scheme = map[string]string{"wss": "https", "ws": "http"}[u.Scheme]
	return a.cfg.Proxy(u)
}
