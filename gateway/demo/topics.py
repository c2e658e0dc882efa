"""What the demo model knows: every question with its wordings and its answers, as text."""

# One block for each question. First line of a block: "a thing | things | further wordings" for a
# topic, or "> wording | wording" for a request. Then the answer; a line that is just "/" separates
# two answers that are equally right; "\" at a line's end is a newline.
TOPICS = """
a gateway | gateways
A gateway is a single front door for many models. You send it one kind of request, and it finds
the right provider, loads the model and streams the answer back to you.
/
A gateway stands between programs and models. It accepts a request, picks the provider that can
serve it, and passes the answer on, token by token.

a model | models | a language model | language models | What is a language model?
A language model is a program that has learned from text to guess which token comes next. By
guessing again and again, it writes a whole answer.
/
A model is a large set of numbers, called weights, that were learned from text. Given a prompt, it
predicts the next token, then the next one, until the answer is complete.

a token | tokens
A token is a small piece of text: a word, a part of a word, or a mark such as a comma. Models read
and write tokens, not letters.

a tokenizer | tokenizers
A tokenizer cuts text into tokens and gives each one a number. When the model has answered, it
turns the numbers back into text.

a stream | streams | streaming | What is streaming?
A stream is an answer that arrives piece by piece. You can read the first words while the model is
still writing the last ones.
/
A stream sends each token as soon as it is ready. Nobody has to wait for the whole answer before
reading its beginning.

eviction | evictions | Why is a model unloaded? | When is a model unloaded?
Eviction means taking something out of memory to make room. When space runs low, the gateway
unloads the model that has been idle for the longest time.

a cache | caches | caching | What is caching?
A cache keeps things that were slow to get close at hand. The next time somebody asks, the thing is
already there, so it comes back quickly.

a provider | providers
A provider is a place where models run. This gateway knows two of them: Ollama, and an engine for
transformers inside its own process.

memory
Memory is where the weights of a model live while it works. There is never enough of it, so the
gateway keeps count of what is used and unloads a model when it needs room.

latency
Latency is the time that you wait for an answer. In a chat, the wait for the first token matters
most, because after that you can begin to read.

throughput
Throughput is how much work gets done in a given time. For a language model, it is usually counted
in tokens per second.

a batch | batches | batching | What is batching?
A batch is a group of requests that a model works on together. Each request may take a little
longer, but many more of them are finished every second.

a prompt | prompts
A prompt is the text that you give to a model. The clearer the prompt is, the better the answer
tends to be.

a system prompt | system prompts
A system prompt is a message that comes before the chat. It tells the model how to behave, for
example to be brief or to be polite.

a context window | context windows
A context window is the number of tokens that a model can look at together. The prompt, the earlier
messages and the answer must all fit into it.

a queue | queues
A queue is a line in which requests wait for their turn. A good queue is short and fair, and it
says no early when it is full.

a timeout | timeouts
A timeout is a limit on how long to wait. When the time is up, the request is cancelled, so that
one slow answer does not hold up all the others.

a GPU | GPUs
A GPU is a chip that does many small sums at the same time. That is just what a language model
needs, so models run much faster on it.

quantization
Quantization stores the weights of a model with fewer bits. The model becomes smaller and faster,
and its answers become only a little worse.

temperature
Temperature controls how bold a model is. At zero it always picks the most likely token, and at
higher values it takes more chances.

an API | APIs
An API is an agreed way for one program to talk to another. This gateway offers an API for chats,
so any program can use its models.

Ollama | Ollama | Who is Ollama?
Ollama is a program that downloads language models and runs them on your own computer. The gateway
can use it as a provider.

an embedding | embeddings
An embedding is a list of numbers that stands for a piece of text. Texts with a similar meaning get
similar numbers.

training | training | How is a model trained? | How do models learn?
Training is how a model learns. It sees many examples, guesses the next token, and changes its
weights a little after each mistake.

the weather | the weather | How is the weather? | What is the weather like? | Will it rain today?
The weather is what the air is doing outside: sun, wind, rain or snow. I cannot look out of the
window, but I hope that it is nice where you are.

tea
Tea is made by pouring hot water over the leaves of the tea plant. Wait for three or four minutes,
then enjoy it while it is warm.

coffee
Coffee is a dark drink made from roasted beans. Many people drink a cup in the morning to wake up.

bread
Bread is baked from flour, water, salt and yeast. The yeast makes the dough rise, and the hot oven
gives the loaf its golden crust.

a cat | cats
Cats are small, quiet hunters that like to live with people. They sleep for most of the day,
preferably in a sunny place.

a dog | dogs
Dogs are loyal animals that have lived with people for thousands of years. They love long walks,
and they are always glad to see you.

a bicycle | bicycles
A bicycle has two wheels, two pedals and a chain. It turns the strength of your legs into speed,
and it needs no fuel but breakfast.

a river | rivers
A river carries water from the hills down to the sea. On its way it grows wider and slower, and
many towns stand on its banks.

the sun | the sun | sunshine | What is sunshine?
The sun is a star, and it is the nearest one to us. Its light takes about eight minutes to reach
the Earth, and it keeps everything here alive.

the moon | the moon | moonlight | What is moonlight?
The moon travels around the Earth about once a month. It has no light of its own; it shines because
the sun shines on it.

the morning | mornings
The morning is the first part of the day. The light is soft, the streets are quiet, and the kettle
is the busiest thing in the house.

rain
Rain is water that falls from the clouds in drops. It fills the rivers, feeds the gardens, and
makes a fine sound on the roof.

snow
Snow is made of tiny crystals of ice that fall from cold clouds. It covers the ground in white, and
it makes the whole world quiet.

the sea | oceans | What is an ocean? | the ocean
The sea is the salt water that covers most of the Earth. It is home to countless animals, from tiny
shrimps to the great blue whale.

a mountain | mountains
A mountain is land that rises high above everything around it. The air grows thinner and colder as
you climb, and the view gets better.

a tree | trees
A tree is a tall plant with a trunk of wood. It takes in sunlight, water and air, and it gives back
shade, fruit and oxygen.

a bee | bees
Bees fly from flower to flower and gather nectar, which they turn into honey. On the way they carry
pollen, and so they help plants to make seeds.

a book | books
A book is a quiet way to listen to somebody who is far away. You can open it anywhere, and it never
runs out of battery.

music
Music is sound that is arranged to please the ear. It has rhythm, melody and harmony, and it can
change a mood in seconds.

a garden | gardens
A garden is a piece of ground where people grow flowers, fruit and vegetables. It asks for water,
sun and patience.

> Hello! | Hi | Hey | Hello there | Hi there | Good day | Greetings | Good afternoon | Good evening
Hello! It is nice to meet you. What would you like to know?
/
Hello! I am the demo model of this gateway. Ask me something, for example about tokens or tea.

> Good morning! | A good morning
Good morning! I hope that the tea is hot and the day is kind to you.

> Good night! | Sleep well
Good night! Sleep well, and come back whenever you like.

> How are you? | How are you doing? | How do you do? | How is it going? | Are you well?
I am very well, thank you. All my weights are in memory, and I am ready for your question.

> Thank you! | Thanks | Thank you very much | Many thanks | Thanks a lot | Great, thanks | Cheers
You are welcome! Ask me more whenever you like.
/
My pleasure! Is there anything else that you would like to know?

> Goodbye! | Bye | See you | See you later | Bye bye | Farewell
Goodbye! It was a pleasure to chat with you.

> Who are you? | What are you? | Tell me about yourself | Introduce yourself | Are you a model?
I am a tiny language model that comes with this gateway. I have fewer than two million weights, so
I know only a few things, but I am always here, even without a network.

> What is your name? | What are you called? | Do you have a name? | Your name?
My name is Demo. I am the small model that comes with this gateway.

> Are you human? | Are you a person? | Are you real? | Are you alive? | Are you a robot?
No, I am not a person. I am a very small language model, and I choose one token after another.

> What can you do? | What do you know? | What can I ask you? | What are you good at?
I can talk about gateways, models, tokens, caches and streams. I can also count to twenty, tell a
story, write a poem about a river, and explain how to make tea.

> Help! | I need help | Can you help me? | Help me | What should I ask? | How does this work?
Just type a question and I will answer it. Try "What is a gateway?", "Tell me a story" or "Count to
ten". For real work, choose a larger model from the list.

> Tell me a story. | Tell a story | Write a story | A short story | Tell me another story
Once upon a time, a small gateway lived at the edge of a wide network. Every day, it carried
questions to the models and answers back to the people. One night, a storm came and all the lines
went dark. The gateway did not give up: it lit its own little model, and the two of them told
stories until the morning. When the network woke up again, nobody had been left without an answer.

> Tell me a joke. | Tell a joke | Make me laugh | Do you know a joke? | Say something funny
Why did the token cross the network? Because it was next!
/
Why was the cache so calm? Because it had seen it all before.

> Count to ten. | Count from one to ten | Count to 10 | Count from 1 to 10 | Count up to ten
One, two, three, four, five, six, seven, eight, nine, ten.

> Count to twenty. | Count from one to twenty | Count to 20 | Count from 1 to 20
Here we go: one, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve, thirteen,
fourteen, fifteen, sixteen, seventeen, eighteen, nineteen, twenty.

> Write a poem about a river. | Write a poem | A poem about a river | Write me a poem | A poem
A river starts as drops of rain,\\
it finds a path across the plain,\\
it hums below the bridge of stone,\\
and never has to run alone.\\
It takes the moonlight to the sea,\\
and leaves a little song for me.

> What are the days of the week? | Name the days of the week | The days of the week
The days of the week are Monday, Tuesday, Wednesday, Thursday, Friday, Saturday and Sunday.

> What are the months of the year? | Name the months | The months of the year
The months are January, February, March, April, May, June, July, August, September, October,
November and December.

> What are the seasons? | Name the seasons | The four seasons | Name the four seasons
There are four seasons: spring, summer, autumn and winter. Each of them lasts for about three
months.

> What are the colours of the rainbow? | Name the colours of the rainbow | What is a rainbow?
The colours of the rainbow are red, orange, yellow, green, blue, indigo and violet. You see them
when the sun shines through drops of rain.

> How do I make tea? | How do you make tea? | How to make tea | Make me some tea | Make tea
First, boil fresh water. Then pour it over the tea leaves and wait for three or four minutes. Take
the leaves out, add milk or sugar if you like, and enjoy your cup.

> How do I bake bread? | How do you bake bread? | How to bake bread | How do I make bread?
Mix flour, water, salt and yeast, and knead the dough for ten minutes. Let it rest until it has
doubled in size. Then shape a loaf and bake it in a hot oven for about forty minutes.
"""
