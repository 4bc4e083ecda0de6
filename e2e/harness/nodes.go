package harness

import "path/filepath"

// nodes is three edges over one Redis. Agents come to the second by TLS, visitors
// enter at the first without, and the third is there: what visitors see has passed
// from node to node.
type nodes struct{}

func (nodes) Name() string { return "nodes" }

func (nodes) Launch(dir string, s Setup) (Face, error) {
	socket := filepath.Join(dir, "redis.sock")
	redis, err := startInto(Command{Name: "redis-server", Args: []string{
		"redis-server", "--port", "0", "--unixsocket", socket, "--dir", dir, "--daemonize", "no", "--save", "",
	}}, NewLog(), NewLog())
	if err != nil {
		return nil, err
	}
	if err := settleRedis(socket); err != nil {
		redis.Kill()
		return nil, err
	}
	cluster := ClusterSetup{
		Setup:    s,
		Registry: []string{"registry redis unix://" + socket},
		TLS:      func(i int) bool { return i == 1 },
		// Not all agents can check a certificate for an address.
		Each: func(_ int, m *Member) { m.PortsHost, m.Local = "127.0.0.1", true },
	}
	if s.Host != nil {
		cluster.Host = func(int) *Host { return s.Host }
		cluster.Each = func(_ int, m *Member) { m.PortsHost = s.Host.Addr }
	}
	c, err := newCluster(dir, cluster)
	f := nodesFace{redis: redis}
	if err == nil {
		log := NewLog()
		for _, n := range c.Nodes {
			n.log.also = log
		}
		f.between = &between{Node: c.Nodes[0], agents: c.Nodes[1], all: c, log: log}
		err = c.launch()
	}
	if err != nil {
		if c != nil {
			c.close()
		}
		redis.Kill()
		return nil, err
	}
	return f, nil
}

// nodesFace is a cluster with its Redis.
type nodesFace struct {
	*between
	redis *Proc
}

func (f nodesFace) Close() []string {
	faults := f.between.Close()
	f.redis.Kill()
	return faults
}
