package e2e

import "github.com/iottunnel/iottunnel/e2e/harness"

// What visitors and agents meet on the face `nginx` is nginx: what Caddy does there
// for its operator, nginx has other directives for, and some of HTTP it does not do.
func init() {
	for name, reason := range map[string]string{
		"TestBasicAuth":          "is about a handler of Caddy in front of devices; nginx has auth_basic",
		"TestForwardAuth":        "is about a handler of Caddy in front of devices; nginx has auth_request",
		"TestOperatorsHeaders":   "is about handlers of Caddy in front of devices",
		"TestOperatorsErrorPage": "is about handle_errors of Caddy",
		"TestNextHandler":        "is about the handler of Caddy that follows; TestNginxOwnSites is about sites of nginx",
		"TestHTTP3":              "nginx 1.22 has none",
		"TestHTTP2Cleartext":     "its visitors negotiate HTTP/2 by ALPN, which TestHTTP2 does",
		"TestPlaintext":          "is about plain connections of agents to the edge",
		"TestProxyProtocol":      "its public ports see nginx as the visitor",
		"TestStreamsPerAddress":  "its public ports see nginx as the visitor",
		"TestWhoMayConnect":      "its public ports see nginx as the visitor",
		"TestReloadSettings":     "its limits are those of each of its nodes",
		"TestReloadClosesPorts":  "nginx has the public ports, and closes none",
		"TestNewAddress":         "what was open ends a minute after the device is back, and not half a minute: nginx sends on into nowhere",
	} {
		if notOn[name] == nil {
			notOn[name] = make(map[string]string)
		}
		notOn[name]["nginx"] = reason
	}
}

// lacking says what of a case a face does not do, and why.
var lacking = map[string]map[string]string{
	"nginx": {
		"trailers":              "nginx 1.22 passes none on, and takes none by HTTP/2",
		"informational answers": "nginx 1.22 passes none on",
		"waiting with 100":      "nginx says 100 Continue by itself",
		"resets":                "the stream module ends a connection whose other half was reset in order",
		"cutting a long header": "nginx answers 400 as soon as a header is too long, and drops the rest",
	},
}

// lacks reports whether a part of a case is left out on a face. The run prints it.
func lacks(k harness.Kind, what string) bool {
	reason := lacking[k.Name()][what]
	if reason != "" {
		result("("+what+")", k.Name(), "not run: "+reason)
	}
	return reason != ""
}
