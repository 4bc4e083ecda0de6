package main

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/iottunnel/iottunnel/agent"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// parseForward reads PORT[/KIND][=HOST:PORT][,OPTION=VALUE…].
func parseForward(s string) (agent.Forward, error) {
	head, options, _ := strings.Cut(s, ",")
	port, target, given := strings.Cut(head, "=")
	p, err := wire.ParsePort(port)
	if err != nil {
		return agent.Forward{}, err
	}
	if !given {
		target = net.JoinHostPort("127.0.0.1", strconv.Itoa(int(p.Number)))
	}
	host, number, err := net.SplitHostPort(target)
	if _, numberErr := strconv.ParseUint(number, 10, 16); err != nil || numberErr != nil || host == "" {
		return agent.Forward{}, fmt.Errorf("%q is not HOST:PORT", target)
	}
	f := agent.Forward{Port: p.Number, Kind: agent.Kind(p.Kind), Target: target}
	if options == "" {
		return f, nil
	}
	for option := range strings.SplitSeq(options, ",") {
		name, value, _ := strings.Cut(option, "=")
		switch name {
		case "proxy_protocol":
			if value != "v2" {
				return agent.Forward{}, errors.New("proxy_protocol is v2 or absent")
			}
			f.ProxyProtocol = true
		case "host", "pin":
			return agent.Forward{}, fmt.Errorf("option %s is %w", name, agent.ErrNotBuilt)
		default:
			return agent.Forward{}, fmt.Errorf("no option %q; there is: proxy_protocol=v2", name)
		}
	}
	return f, nil
}
