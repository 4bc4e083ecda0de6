//go:build linux

package ways

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/iottunnel/iottunnel/bench/load"
	"github.com/iottunnel/iottunnel/bench/proc"
)

// devices of the ways through the tunnel, all of them on one edge: those that are
// not in use cost it a ping every 25 s.
var devices = map[string]string{Basic: "basic", BasicTLS: "basic-tls", Full: "full", FullTLS: "full-tls"}

// Edge is the edge of the ways that need one.
func (s *Setup) Edge(ctx context.Context) (*Edge, error) {
	if s.edge != nil {
		return s.edge, nil
	}
	var ids []string
	for _, id := range devices {
		ids = append(ids, id)
	}
	var err error
	s.edge, err = StartEdge(ctx, EdgeConfig{
		Caddy: filepath.Join(s.config.Bin, "caddy"), Addr: s.edgeAddr(), On: s.edgeHost(),
		Service: s.service, Devices: ids, Group: s.group, Name: "edge",
	})
	return s.edge, err
}

func (s *Setup) startCaddy(ctx context.Context) (*Way, error) {
	edge, err := s.Edge(ctx)
	if err != nil {
		return nil, err
	}
	return &Way{HTTP: &load.Target{Addr: edge.HTTP, Host: proxied, From: s.edgeHost()}, Edge: []int{edge.PID()}}, nil
}

// startTunnel starts an agent that forwards the service as port 80, and as a port
// of kind tcp.
func (s *Setup) startTunnel(ctx context.Context, name string) (*Way, error) {
	flags, err := s.profile(name)
	if err != nil {
		return nil, err
	}
	edge, err := s.Edge(ctx)
	if err != nil {
		return nil, err
	}
	agent, err := s.startAgent(ctx, edge, name, flags)
	if err != nil {
		return nil, err
	}
	return &Way{
		HTTP: &load.Target{Addr: edge.HTTP, Host: devices[name] + "." + Domain, From: s.edgeHost()},
		TCP:  s.target(agent.public), Edge: []int{edge.PID()}, Device: []int{agent.PID()},
	}, nil
}

type agent struct {
	*proc.Proc
	public string // IP:port of its port of kind tcp
}

func (s *Setup) startAgent(ctx context.Context, edge *Edge, name string, flags []string) (a agent, err error) {
	server := edge.Plain
	if strings.HasSuffix(name, ", TLS") {
		server = edge.TLS
	}
	args := append([]string{
		filepath.Join(s.config.Bin, "iottunnel-agent"), "run", "--server", server, "--ca", edge.CA, "--allow-plaintext",
		"--device", devices[name], "--token-file", edge.TokenFile(),
		"--forward", "80=" + s.service, "--forward", "9000=" + s.service,
	}, flags...)
	a.Proc, err = s.group.Start(proc.Spec{Name: "agent-" + devices[name], Args: s.deviceHost().Args(args...)})
	if err != nil {
		return a, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, startTime, errors.New("the agent is not up"))
	defer cancel()
	for range 2 { // 80/http http://…  and  9000/tcp tcp://HOST:PORT
		line, err := a.Line(ctx)
		if err != nil {
			return a, err
		}
		if _, addr, found := strings.Cut(line, " tcp://"); found {
			a.public = addr
		}
	}
	if a.public == "" {
		return a, fmt.Errorf("the agent has no public port: %s", a.Log())
	}
	return a, nil
}

// profile is the agent's flags for a way. An agent that has no choice of profiles
// speaks the basic one.
func (s *Setup) profile(name string) ([]string, error) {
	help, err := exec.Command(filepath.Join(s.config.Bin, "iottunnel-agent"), "run", "--help").CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("iottunnel-agent run --help: %w", err)
	}
	choice := strings.Contains(string(help), "--profile")
	full := name == Full || name == FullTLS
	switch {
	case choice && full:
		return []string{"--profile", "full"}, nil
	case choice:
		return []string{"--profile", "basic"}, nil
	case full:
		return nil, Missing("this agent has no --profile: it speaks the basic one alone")
	default:
		return nil, nil
	}
}
