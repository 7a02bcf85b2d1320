package main

import (
	"errors"

	"gantry.dev/nodeagent/pod"
	"gantry.dev/nodeagent/runtime"
	"gantry.dev/nodeagent/runtime/rundir"
	"gantry.dev/nodeagent/serve"
	"gantry.dev/nodeagent/stats"
	"gantry.dev/schemas"
)

// serveSessions answers what opens sessions with pods and carries them on, and
// what the node uses.
func (a *agent) serveSessions() error {
	transfers := &serve.Transfers{Pods: a.pods, Sessions: a.sessions, Sandbox: a.rt.Sandbox}
	streams := &serve.Streams{Pods: a.pods, Sessions: a.sessions, Runtime: a.rt}
	use := stats.New(stats.Options{Cgroup: a.o.cgroup(), Pods: func() []stats.Pod { return running(a.pods.List()) }})
	return errors.Join(
		a.conn.Serve(schemas.NodeMethodExec, streams.Exec),
		a.conn.Serve(schemas.NodeMethodAttach, streams.Attach),
		a.conn.Serve(schemas.NodeMethodPortForward, transfers.Forward),
		a.conn.Serve(schemas.NodeMethodCopy, transfers.Copy),
		a.conn.Serve(schemas.NodeMethodSend, a.sessions.Send),
		a.conn.Serve(schemas.NodeMethodRecv, a.sessions.Recv),
		a.conn.Serve(schemas.NodeMethodStats, use.Answer),
	)
}

// running lists the pods of which something runs.
func running(views []pod.View) []stats.Pod {
	var out []stats.Pod
	for _, v := range views {
		p := stats.Pod{Namespace: v.Want.Namespace, Name: v.Want.Name, UID: v.Want.UID, Runs: map[string]string{}}
		for _, c := range v.Containers {
			if c.Phase == runtime.PhaseRunning {
				p.Runs[c.Name] = rundir.RunName(c.Name, c.Attempt)
			}
		}
		if len(p.Runs) > 0 {
			out = append(out, p)
		}
	}
	return out
}
