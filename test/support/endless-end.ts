/** A program that never comes to its end in order: argument: its log. */
import { Ending, watchProcess } from '../../src/daemon/ending.ts';
import { Log } from '../../src/daemon/log.ts';

const ending = new Ending();
watchProcess(new Log(process.argv[2]!, { echo: false }), ending);
setInterval(() => {}, 1000);
console.log('ready');
await ending.ended;
console.log('ending');
await new Promise(() => {});
