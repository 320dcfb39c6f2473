#!/usr/bin/env bash
# A SLURM cluster of one node, this machine, for tests: slurm_here.sh start DIR | node DIR | stop DIR
#
# It needs root, and Debian's packages: apt-get install -y --no-install-recommends slurm-wlm munge
# Everything that it writes is in DIR, which must be new; nothing of the system's own SLURM is touched.
#   start  munged, slurmctld and slurmd; prints the variables that a client needs
#   node   slurmd again, after it was killed
#   stop   ends all three, by their process numbers
set -euo pipefail
action=$1 dir=$2
export SLURM_CONF=$dir/slurm.conf

node() {
    slurmd -N here -D -L "$dir/slurmd.log" >/dev/null 2>&1 &
    echo $! >"$dir/slurmd.started"
}

start() {
    mkdir -p "$dir"/{state,spool,munge}
    chmod 755 "$dir" "$dir/munge"
    (umask 077 && head -c 1024 /dev/urandom >"$dir/munge/key")
    chown -R munge: "$dir/munge"
    su munge -s /bin/sh -c "munged --force --socket=$dir/munge/socket --key-file=$dir/munge/key \
        --log-file=$dir/munge/log --pid-file=$dir/munge/pid --seed-file=$dir/munge/seed"
    local host port
    host=$(hostname -s)
    port=$((20000 + RANDOM % 20000))
    cat >"$SLURM_CONF" <<END
ClusterName=here
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmdPort=$((port + 1))
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$dir/munge/socket
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,batch_sched_delay=0
ReturnToService=2
SlurmdTimeout=10
KillWait=15
MinJobAge=300
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
NodeName=here NodeHostname=$host NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=8000 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
END
    slurmctld -D -L "$dir/slurmctld.log" >/dev/null 2>&1 &
    echo $! >"$dir/slurmctld.started"
    node
    for _ in $(seq 60); do
        [ "$(sinfo -h -o %T 2>/dev/null)" = idle ] && echo "SLURM_CONF=$SLURM_CONF" && return
        sleep 0.5
    done
    echo "the node did not come up:" >&2
    tail -n 5 "$dir"/slurm*.log >&2
    return 1
}

stop() {
    local name
    for name in "$dir"/{slurmd,slurmctld}.started "$dir/munge/pid"; do
        [ -f "$name" ] && kill "$(cat "$name")" 2>/dev/null || true
    done
}

"$action"
