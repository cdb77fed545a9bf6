"""Let a population of subnetworks evolve while a network learns to read digits; half of it goes.

    python examples/edropout.py

Every state of the population says for each filter whether it is kept. On every batch the states compete by the margin of their predictions, under a budget:
half of the parameters. The digits come with scikit-learn; nothing is downloaded.
"""

import keras
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import keras_gibbs as kg

EPOCHS = 40


def digits():
    data = load_digits()
    images = (data.images[..., None] / 16).astype("float32")
    return train_test_split(images, data.target, test_size=360, random_state=0, stratify=data.target)


def convnet():
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.Conv2D(64, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(128, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(10),
        ]
    )


def main():
    keras.utils.set_random_seed(0)
    x_train, x_test, y_train, y_test = digits()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    dense = convnet()
    dense.compile("adam", loss, metrics=["accuracy"])
    dense.fit(x_train, y_train, batch_size=64, epochs=EPOCHS, verbose=0)

    searched = kg.prune(convnet(), kg.EDropout(population=8, objective=kg.MarginEnergy() + kg.KeepPenalty(0.5)))
    searched.compile("adam", loss, metrics=["accuracy"])
    searched.fit(x_train, y_train, batch_size=64, epochs=EPOCHS, verbose=2, callbacks=[kg.GibbsPruningCallback()])

    final = kg.strip_pruning(searched)
    final.compile(loss=loss, metrics=["accuracy"])
    for name, model in (("dense", dense), ("after the search", final)):
        print(f"{name}: {model.evaluate(x_test, y_test, verbose=0)[1]:.2%} of {len(x_test)} test digits right")
    print(kg.summary(searched))


if __name__ == "__main__":
    main()
